"""Array types with named axes, such as ``Float64[np.ndarray, "expert probe hidden"]``.

jaxtyping makes them checkable in the tests; it is no dependency of the package,
so without it the annotation is the array type alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int64
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int64
    except ModuleNotFoundError:

        class _Unchecked:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float32 = Float64 = Int64 = _Unchecked

__all__ = ["Bool", "Float", "Float32", "Float64", "Int64"]
