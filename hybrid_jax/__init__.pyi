from hybrid_jax.api.model import Model as Model
from hybrid_jax.api.model import load as load
from hybrid_jax.config import Experiment as Experiment
from hybrid_jax.errors import UserError as UserError
from hybrid_jax.method import hyperschedule as hyperschedule
from hybrid_jax.method import noising as noising
from hybrid_jax.method.layout import Layout as Layout
from hybrid_jax.method.loss import Spec as Spec
from hybrid_jax.method.objective import Objective as Objective
from hybrid_jax.sampling import rules as rules
from hybrid_jax.training import workdir as workdir

__version__: str
__all__: list[str]
