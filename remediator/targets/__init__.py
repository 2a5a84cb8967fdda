"""Where the targets of plans lie: within a connection's scope, in which failure domain. Pure."""
