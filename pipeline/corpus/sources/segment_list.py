"""Sources `sample` and `url`: a segment list in AudioSet's format, and a URL of its recordings."""

from pathlib import Path

from pipeline.corpus.clips import segments
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.params import SegmentListParams


class SegmentList:
    """Recordings named by a template with {recording_id}."""

    def __init__(self, params: SegmentListParams) -> None:
        self.url = params.url
        self._path = Path(params.segments)

    def segments(self) -> list[Segment]:
        """See `source.Recordings`."""
        return segments.read(self._path)
