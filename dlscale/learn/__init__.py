"""Models trained by gradient steps.

The mathematics is pure NumPy in one process: `models`, `losses`, `activations`, `initializers`, `regularization`, `decorrelation`,
`optimizers`, `lbfgs`, `proximal`, `kfac`, `schedules`, `clipping`, `metrics`. Everything that it computes from rows is a sum over
rows, so that ranks add up what they have and take the same step; the other modules feed it rows and do the adding up.
"""
