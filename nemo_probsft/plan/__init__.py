"""`train --plan`: what a rank would hold, computed from shapes alone."""
