"""All the mathematics, in pure array API: functions that take ``xp`` and know no framework."""
