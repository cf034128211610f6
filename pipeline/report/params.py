"""Section `report` of params.yaml."""

from pydantic import Field

from pipeline.core.params import Section


class ReportParams(Section):
    """Section `report`."""

    clips: int = Field(ge=1, le=100)  # shown with their two views
