"""Images in: data sets, folders, other people's files, and the space in which networks see them."""
