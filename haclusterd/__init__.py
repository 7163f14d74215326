"""haclusterd: an N+x high-availability controller that runs beside each FreeSWITCH."""

__version__ = "0.1.0"
