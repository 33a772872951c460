"""d3jax: backdoor attacks, defences and their analysis for image classifiers, as pure JAX functions.

`__init__.pyi` lists the public names and where they live; each is imported when first used, so that
`import d3jax` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
