package fleet

import "github.com/redis/go-redis/v9"

// Every script takes the time from Redis: the clocks of instances may differ. Rates are held by the generic cell rate algorithm
// (ITU-T I.371): a key has the moment, in milliseconds, at which all that was taken so far would have been due at the sustained rate.
const scriptHead = `
local function clock()
	local t = redis.call('TIME')
	return t[1] * 1000 + math.floor(t[2] / 1000)
end
local now = clock()
-- due takes one from a rate, or looks only; it returns how many ms there is to wait, 0: none.
local function due(key, every, burst, take)
	every, burst = tonumber(every), tonumber(burst)
	if every == 0 then return 0 end
	local at = math.max(tonumber(redis.call('GET', key)) or 0, now)
	local wait = at + every - burst - now
	if wait > 0 then return math.ceil(wait) end
	if take then redis.call('SET', key, at + every, 'PX', math.ceil(at + every - now) + 1) end
	return 0
end
-- count adds up what live instances hold of a key.
local function count(key, live, stale)
	local n, held = 0, redis.call('HGETALL', key)
	for i = 1, #held, 2 do
		local beat = redis.call('ZSCORE', live, held[i])
		if beat and tonumber(beat) > now - stale then n = n + tonumber(held[i + 1]) end
	end
	return n
end
local function full(key, most, live, stale)
	most = tonumber(most)
	return most > 0 and count(key, live, stale) >= most
end
`

// The answers of admit and enter, in this order.
var scopes = [...]Scope{"", RateAddress, Failures, RateGlobal, SessionsAddress, SessionsTotal, RateSubject, SessionsSubject}

var (
	// admit is what is asked before a client is authenticated.
	// KEYS: live, rate of the address, its failures, rate of all, sessions of the address, of all.
	// ARGV: stale, every and burst of the three rates, most sessions of the address and of all.
	admit = redis.NewScript(scriptHead + `
local stale = tonumber(ARGV[1])
local wait = due(KEYS[2], ARGV[2], ARGV[3], true)
if wait > 0 then return {1, wait} end
wait = due(KEYS[3], ARGV[4], ARGV[5], false)
if wait > 0 then return {2, wait} end
wait = due(KEYS[4], ARGV[6], ARGV[7], true)
if wait > 0 then return {3, wait} end
if full(KEYS[5], ARGV[8], KEYS[1], stale) then return {4, 0} end
if full(KEYS[6], ARGV[9], KEYS[1], stale) then return {5, 0} end
return {0, 0}
`)

	// enter takes a place for a session, once its client is authenticated.
	// KEYS: live, rate of the subject, sessions of the address, of the subject, of all, what this instance holds.
	// ARGV: stale, instance, every and burst of the rate, most sessions of the address, of the subject and of all. -1: not counted.
	enter = redis.NewScript(scriptHead + `
local stale = tonumber(ARGV[1])
local wait = due(KEYS[2], ARGV[3], ARGV[4], true)
if wait > 0 then return {6, wait} end
if full(KEYS[3], ARGV[5], KEYS[1], stale) then return {4, 0} end
if full(KEYS[4], ARGV[6], KEYS[1], stale) then return {7, 0} end
if full(KEYS[5], ARGV[7], KEYS[1], stale) then return {5, 0} end
for i = 3, 5 do
	if tonumber(ARGV[i + 2]) > 0 then
		redis.call('HINCRBY', KEYS[i], ARGV[2], 1)
		redis.call('SADD', KEYS[6], KEYS[i])
	end
end
return {0, 0}
`)

	// charge takes one from a rate. KEYS: the rate. ARGV: every, burst.
	charge = redis.NewScript(scriptHead + `return due(KEYS[1], ARGV[1], ARGV[2], true)`)

	// set writes what an instance holds. KEYS: what it holds, then each key. ARGV: instance, then the number of each; 0: none.
	set = redis.NewScript(`
for i = 2, #KEYS do
	if tonumber(ARGV[i]) > 0 then
		redis.call('HSET', KEYS[i], ARGV[1], ARGV[i])
		redis.call('SADD', KEYS[1], KEYS[i])
	else
		redis.call('HDEL', KEYS[i], ARGV[1])
		redis.call('SREM', KEYS[1], KEYS[i])
	end
end
return 0
`)

	// change adds to what an instance holds. KEYS: what it holds, then each key. ARGV: instance, then what is added to each.
	change = redis.NewScript(`
for i = 2, #KEYS do
	if redis.call('HINCRBY', KEYS[i], ARGV[1], ARGV[i]) > 0 then
		redis.call('SADD', KEYS[1], KEYS[i])
	else
		redis.call('HDEL', KEYS[i], ARGV[1])
		redis.call('SREM', KEYS[1], KEYS[i])
	end
end
return 0
`)

	// beat tells that an instance lives. KEYS: live. ARGV: stale, instance.
	// It returns 1 where it was known to, how many live, and one that does not any more.
	beat = redis.NewScript(scriptHead + `
local stale = tonumber(ARGV[1])
local last = redis.call('ZSCORE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[2])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - stale, 'LIMIT', 0, 1)
local known = 0
if last and tonumber(last) > now - stale then known = 1 end
return {known, redis.call('ZCOUNT', KEYS[1], '(' .. (now - stale), '+inf'), dead[1] or ''}
`)

	// bury forgets a dead instance, some of what it held at a time. KEYS: live, what it held. ARGV: instance, stale.
	// It returns whether there is more.
	bury = redis.NewScript(scriptHead + `
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
if last and tonumber(last) > now - tonumber(ARGV[2]) then return 0 end
for _, key in ipairs(redis.call('SPOP', KEYS[2], 500)) do redis.call('HDEL', key, ARGV[1]) end
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
`)
)
