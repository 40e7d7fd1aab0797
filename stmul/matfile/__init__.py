"""MATLAB files, read without running anything in them."""

from stmul.matfile.values import Foreign
from stmul.matfile.variables import read_variables

__all__ = ["Foreign", "read_variables"]
