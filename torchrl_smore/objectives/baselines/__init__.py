"""The methods that SMORe is compared with, one loss per file."""
