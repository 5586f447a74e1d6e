// Package admin is the operator's listener and what it shows: whether the process lives, whether it takes new
// connections, and the metrics.
//
// # Pages
//
//	/healthz   200 "ok" as long as the process can answer at all; restart it when this stops
//	/readyz    200 "ready", or 503 "not ready" before the front listens and from SIGTERM on; send no new clients then
//	/metrics   Prometheus text (or OpenMetrics, by Accept), compressed where the scraper allows it
//
// Each answers GET and HEAD, any other method is 405, any other path 404. Nothing here changes anything and nothing asks
// for a credential: the numbers are the operator's alone, so the listener SHOULD stay on loopback or on a network that
// clients of the front cannot reach.
//
// # Metrics
//
// All are in one registry of their own, with the client library's go_* and process_* beside them. Durations are seconds.
//
//	portcullis_build_info{version,revision,go_version}          gauge      always 1
//	portcullis_config_last_reload_successful                    gauge      1: the settings had no mistake when they were last read
//	portcullis_config_last_reload_timestamp_seconds             gauge      when that was
//	portcullis_config_last_reload_success_timestamp_seconds     gauge      when those that hold were read
//	portcullis_upgrades_total{result,reason}                    counter    result="accepted",reason="" or result="refused" and why
//	portcullis_route_upgrades_total{route,result}               counter    the same by route; "default" is the only one
//	portcullis_http_requests_total{code,reason}                 counter    plain requests: code="2xx",reason="" or why the answer broke off; code="" and why refused
//	portcullis_http_requests_live                               gauge      plain requests under way with the upstream
//	portcullis_sessions_live                                    gauge      sessions relayed now
//	portcullis_route_sessions{route}                            gauge      those of a route
//	portcullis_sessions_ended_total{reason,code}                counter    why a session ended and its close code
//	portcullis_session_duration_seconds                         histogram  1 5 15 60 300 900 3600 14400 43200 86400
//	portcullis_messages_total{direction}                        counter    complete data messages
//	portcullis_message_bytes_total{direction}                   counter    their payload as on the wire: compressed if it was
//	portcullis_sessions_detached                                gauge      of those live: whose client is away and may come back
//	portcullis_resumptions_total{result}                        counter    clients that came back to their session
//	portcullis_resumptions_lost_total                           counter    sessions that are resumable no more, for want of memory
//	portcullis_resume_kept_bytes                                gauge      what resumable sessions keep
//	portcullis_upstream_sessions{target}                        gauge      sessions, and handshakes and plain requests under way
//	portcullis_upstream_usable{target}                          gauge      1: it gets new sessions
//	portcullis_fleet_instances                                  gauge      instances of the fleet, as last known
//	portcullis_fleet_alone                                      gauge      1: this one holds its share of every limit
//	portcullis_bus_dropped_total{reason}                        counter    messages on its bus that are not obeyed
//	portcullis_bus_missed_total                                 counter    those that have not come, by their numbers
//	portcullis_redis_call_duration_seconds{result}              histogram  .001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5 5 10
//	portcullis_pushes_total{result}                             counter    pushes, one for each session
//	portcullis_pushes_dropped_total{reason}                     counter    those that were queued and not delivered
//	portcullis_auth_call_duration_seconds{result}               histogram  .001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5 5 10
//	portcullis_upstream_dial_duration_seconds{result}           histogram  .001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5 5 10
//
// A histogram's _count is the number of calls, so the two with a result tell outcomes as well as times.
//
// direction is from_client or from_upstream. Messages and bytes are added when their session ends, so a long session
// appears in one step: right for totals, not for a rate over less than a session's usual length.
//
// # Label values are bounded
//
// A series lives as long as the process, so no label ever holds what a client or an upstream chose:
//
//	reason   one of those named in [Known], else other
//	result   the [AuthAccepted], [DialConnected] and [Resumed] constants, and those of pushes, else other
//	code     a code of the IANA registry that may be on the wire (1000 to 1014, 3000, 3003, 3008), else 3xxx, 4xxx
//	         or other; 1005 for a Close frame without a code, 1006 if there was none
//
// Series of the known reasons (of ended sessions: with code none) and of the results exist from the start at zero, so
// that an alert sees the first refusal as an increase.
package admin
