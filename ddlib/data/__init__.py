"""Images in: data sets, folders and other people's files, and the space in which networks see them."""
