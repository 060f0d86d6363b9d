"""How fast files run: latency and throughput, beside float and the runtime's own quantization.

bench: the measurement. timed_file: one file, its float form, and what is fed to both.
"""
