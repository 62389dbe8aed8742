# For type checkers: at run time this is the stock module itself (_stock_modules.py).
from multiprocessing.util import *
