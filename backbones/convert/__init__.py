"""The converters, in a checkout: they stand in its folder ``convert/``, which a wheel has in the place of this one."""

import os

__path__ = [os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "convert"))]
