"""Modules that hold scales: fake quantizers and the layers that use them."""
