"""How good a prediction probably is: :mod:`calibration` learns it from validation cases, :mod:`table` lists cases."""
