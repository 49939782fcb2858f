"""Published results as recipes: each figure of the papers behind one command, as published and clean."""
