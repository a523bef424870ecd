"""Steps: of first order, quasi-Newton, proximal, natural gradients."""
