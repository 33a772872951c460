"""Backdoor attacks on image classifiers, defences and their analysis, as pure JAX functions.

`__init__.pyi` lists the public names and their modules. Each name is imported when it is first
used, so that `import d3jax` is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
