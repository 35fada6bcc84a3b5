"""The method of the paper, pure: hyperschedules, noise, layout, objective and loss."""
