"""Loss terms of the methods that SMORe is compared with, one file per family."""
