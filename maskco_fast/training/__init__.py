"""A training run: its configuration, its loop and what it writes.

config.py             TrainConfig: every setting of a run
recipes.py            named configurations, the values of `--recipe`
trainer.py            the training loop; resumes from the newest checkpoint
optimizer.py          SGD and LARS, the learning rate schedule
devices.py            device and precision of a run
distributed.py        the processes of a run and their communication
loader_choice.py      `--loader auto`: the fastest loader on the run's shards
deferred_scalars.py   losses that stay on the device until several steps are read together
metrics.py            metrics.jsonl, samples.jsonl, TensorBoard, the progress line
monitor.py            k-NN accuracy during a run
checkpoint.py         checkpoint files with checksums
checkpoint_writer.py  writes checkpoints in a thread while the steps continue
graphed.py            a whole step as one CUDA graph
signals.py            SIGTERM, SIGUSR1 and Ctrl-C end a run between two steps
"""
