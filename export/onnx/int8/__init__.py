"""INT8 graphs by NNCF, under accuracy control."""
