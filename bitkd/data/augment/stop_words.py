"""English function words. Augmentation does not replace them, because that would change grammar or meaning."""

STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing don down during each either else ever every few for from further had has have
    having he her here hers herself him himself his how i if in into is it its itself just may me might more most
    must my myself neither no nobody none nor not nothing now of off on once one only or other our ours ourselves
    out over own per same shall she should so some such than that the their theirs them themselves then there these
    they this those through to too under until up upon us very was we were what when where whether which while who
    whom whose why will with within without would yes yet you your yours yourself yourselves
    """.split()  # noqa: SIM905 - a list of quoted words would fill a page
)
