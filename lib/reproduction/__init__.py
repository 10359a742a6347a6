"""What makes the figures of *Neural Ordinary Differential Equations* (Chen et al. 2018): data, models, training,
experiments, measurements, figures, claims and the pipeline."""
