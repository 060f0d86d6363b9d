"""Float networks; they know nothing of quantization.

vision: any network by its name, qtool's own or torchvision's. papers: qtool's own, and where to add
one; mobilenet, preactivation, residual, two_layers: their parts; activation_functions: what may
stand for their ReLUs; building: what several are built with. timm_models: those of timm.
user_models: the user's own. architecture: what makes a network again. weights: from a file;
checkpoints: as trainers write it. published: torchvision's networks and weights.
"""
