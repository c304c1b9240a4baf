"""Grey pixels as TensorFlow makes them, which the Long Range Arena reads."""

import numpy as np

# tf.image.rgb_to_grayscale's; they add up to 0.9999.
_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)
_AT_ONCE = 1_000


def tf_grey(images: np.ndarray) -> np.ndarray:
    """Grey values of RGB pixels as `tf.image.rgb_to_grayscale` gives them for bytes.

    In float32: each channel is divided by 255, the weighted sum multiplied by 255.5 and cut to a whole number. PIL and
    torchvision round other weights, and their value is larger by one in a quarter of CIFAR-10's pixels. The sum of
    three products is rounded as written, red first; a fused multiply-add changes three pixels in a million.

    Args:
      images: uint8 [N, H, W, 3].

    Returns:
      uint8 [N, H, W].

    Raises:
      ValueError: another shape or dtype.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 [N, H, W, 3], got {images.dtype} {images.shape}.")
    grey = np.empty(images.shape[:3], np.uint8)
    for first in range(0, len(images), _AT_ONCE):  # floats take many times the memory of bytes
        part = images[first : first + _AT_ONCE].astype(np.float32) * np.float32(1 / 255)
        red, green, blue = (part[..., channel] * _WEIGHTS[channel] for channel in range(3))
        grey[first : first + _AT_ONCE] = ((red + green + blue) * np.float32(255.5)).astype(np.uint8)
    return grey
