"""The methods that SMORe is compared with, one loss a file."""
