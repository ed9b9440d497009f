"""Use cases; HTTP routes and MQTT messages both end here."""
