"""Drawing boxes and paths by hand, in a page that this machine serves to itself."""
