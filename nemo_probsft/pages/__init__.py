"""What all pages and figures look like: colours and matplotlib's style, the base of the HTML pages."""
