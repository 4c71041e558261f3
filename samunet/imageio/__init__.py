"""Reading images and labels and writing masks: one contract (:mod:`samunet.imageio.base`), one module per library."""
