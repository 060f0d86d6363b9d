"""Many runs in, one honest verdict out."""
