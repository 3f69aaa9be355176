"""Time, memory and error of one cell after another, and the file that records them."""
