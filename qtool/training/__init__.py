"""Fake-quantized model and loaders in, trained model out.

loop: epochs. step, compiled, captured: one step, in three ways. population: expected gradients.
average: of weights over steps. frozen: what does not train. class_weights: what an image counts.
step_aid: who takes part in a step beside the optimizer: transition_rate, grid_pull; sharpness: a
second pass.
judging: by images that are not trained on. patience: which epoch did best, and when to end. losses,
optimizers: their tables; user_training: those of the user. torch_optimizers: those of torch.
distillation: what a teacher adds to the loss; features: what blocks of networks return. batch_norm:
statistics estimated again. profile: where the time goes. freed_memory: kept for the next step.
progress: what is shown. watcher: who looks on; explanation: one that tells why arms differ.
step_watch: what must hold at each step. failures: where it did not. lost: after each epoch. tally:
what the epoch in progress has come to. position: where a run stands inside it. replicas: one model
in several processes; synced_norms, random_numbers: its batch norms, and what is random in each.
"""
