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
	at = math.min(at, now + burst) -- beyond that is nothing, unless the clock was set back
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
		if beat and tonumber(beat) > now - stale then n = n + (tonumber(held[i + 1]) or 0) end
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
	// KEYS: live, rate of the subject, sessions of the address, of the subject, of all, what this instance holds, and as admit the rate of
	// the address, its failures, the rate of all.
	// ARGV: stale, instance, every and burst of the rate, most sessions of the address, of the subject and of all, where 0 is not counted,
	// every and burst of the other rates, where 0 is not asked about, and what has changed by what this instance has of the three keys
	// of sessions. Its answer is that of admit, or -1: nothing that is known stands against it, but the instance itself is not known any more.
	enter = redis.NewScript(scriptHead + `
local stale = tonumber(ARGV[1])
for i = 3, 5 do
	local n = tonumber(ARGV[11 + i])
	if n ~= 0 and redis.call('HINCRBY', KEYS[i], ARGV[2], n) <= 0 then
		redis.call('HDEL', KEYS[i], ARGV[2])
		redis.call('SREM', KEYS[6], KEYS[i])
	end
end
for i, scope in ipairs({1, 2, 3}) do
	local wait = due(KEYS[6 + i], ARGV[6 + 2 * i], ARGV[7 + 2 * i], scope ~= 2)
	if wait > 0 then return {scope, wait} end
end
local wait = due(KEYS[2], ARGV[3], ARGV[4], true)
if wait > 0 then return {6, wait} end
if full(KEYS[3], ARGV[5], KEYS[1], stale) then return {4, 0} end
if full(KEYS[4], ARGV[6], KEYS[1], stale) then return {7, 0} end
if full(KEYS[5], ARGV[7], KEYS[1], stale) then return {5, 0} end
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then return {-1, 0} end
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

	// beat tells that an instance lives. KEYS: live, owners, draining, epoch, secret, left. ARGV: stale, instance, the token of its process,
	// whether it is draining, its secret, whether one that was not known to live is to be noted. It returns how it stands (standing), how many live that do not drain, the epoch, the time, one
	// that does not live any more, the secret that all have, and the names of those that live.
	beat = redis.NewScript(scriptHead + `
local stale = tonumber(ARGV[1])
local last = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0)
local owner = redis.call('HGET', KEYS[2], ARGV[2])
local standing = 1
if last > now - stale then
	standing = 2
	if owner ~= ARGV[3] then standing = owner and 0 or 1 end
end
if standing == 2 or standing == 1 and ARGV[6] == '1' then
	redis.call('ZADD', KEYS[1], now, ARGV[2])
	redis.call('ZREM', KEYS[6], ARGV[2])
	redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
	redis.call(ARGV[4] == '1' and 'SADD' or 'SREM', KEYS[3], ARGV[2])
end
redis.call('SET', KEYS[5], ARGV[5], 'NX')
local secret = redis.call('GET', KEYS[5])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - stale, 'LIMIT', 0, 1)
local names = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - stale), '+inf')
local size = 0
for _, name in ipairs(names) do
	if redis.call('SISMEMBER', KEYS[3], name) == 0 then size = size + 1 end
end
return {standing, size, tonumber(redis.call('GET', KEYS[4])) or 0, now, dead[1] or '', secret, unpack(names)}
`)

	// nothing asks whether Redis answers in time.
	nothing = redis.NewScript(`return 0`)

	// alive names the instances that live, and those that have left. KEYS: live, left. ARGV: stale.
	alive = redis.NewScript(scriptHead + `
return {redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - tonumber(ARGV[1])), '+inf'), redis.call('ZRANGE', KEYS[2], 0, -1)}`)

	// record keeps a message of the bus in the history, once, and forgets the oldest. KEYS: history, its bytes, how many there ever were, the
	// last numbers of its publisher. ARGV: the message, its number, until when it counts (0: ever), most messages, their age in ms, most
	// bytes. It returns the message's id in the history, or where it is not kept: 'repeated' or 'late'.
	record = redis.NewScript(scriptHead + `
local number, until_ = tonumber(ARGV[2]), tonumber(ARGV[3])
if until_ > 0 and now > until_ then return 'late' end
local last = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
if redis.call('ZSCORE', KEYS[4], ARGV[2]) or last and number < tonumber(last) and redis.call('ZCARD', KEYS[4]) >= 64 then return 'repeated' end
local id = redis.call('XADD', KEYS[1], '*', 's', redis.call('INCR', KEYS[3]), 'm', ARGV[1])
redis.call('ZADD', KEYS[4], number, ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -65)
redis.call('EXPIRE', KEYS[4], 86400)
local count = redis.call('XLEN', KEYS[1])
local bytes = #ARGV[1]
if count > 1 then bytes = bytes + (tonumber(redis.call('GET', KEYS[2])) or 0) end
for _ = 1, 1000 do
	local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
	if not oldest or oldest[1] == id then break end
	local at = tonumber(string.match(oldest[1], '^%d+'))
	if count <= tonumber(ARGV[4]) and at > now - tonumber(ARGV[5]) and bytes <= tonumber(ARGV[6]) then break end
	redis.call('XDEL', KEYS[1], oldest[1])
	count, bytes = count - 1, bytes - #(oldest[2][4] or '')
end
redis.call('SET', KEYS[2], math.max(bytes, 0))
return id
`)

	// since is the id before which nothing is known of the history. KEYS: since, how many there ever were. It returns that number, too.
	since = redis.NewScript(scriptHead + `
redis.call('SET', KEYS[1], now .. '-0', 'NX')
return {redis.call('GET', KEYS[1]), tonumber(redis.call('GET', KEYS[2])) or 0}
`)

	// bury forgets a dead instance, some of what it held at a time. KEYS: live, what it held, owners, draining. ARGV: instance, stale.
	// It returns whether there is more.
	bury = redis.NewScript(scriptHead + `
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
if last and tonumber(last) > now - tonumber(ARGV[2]) then return 0 end
for _, key in ipairs(redis.call('SPOP', KEYS[2], 500)) do redis.call('HDEL', key, ARGV[1]) end
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
return 0
`)

	// leave takes an instance out. KEYS: live, owners, draining, left. ARGV: instance, the token of its process. It returns 1 where it was it.
	leave = redis.NewScript(scriptHead + `
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - 60000)
redis.call('ZADD', KEYS[4], now, ARGV[1])
redis.call('PEXPIRE', KEYS[4], 60000)
return 1
`)

	// mend deletes keys that are of another kind than they are to be, and has all instances write their counts anew. KEYS: any, and the
	// epoch. ARGV: the kind of each but the epoch. It returns how many were deleted.
	mend = redis.NewScript(`
local deleted = 0
local function delete(key) deleted = deleted + redis.call('DEL', key) end
for i = 1, #KEYS do
	local kind, want = redis.call('TYPE', KEYS[i]).ok, ARGV[i] or 'string'
	if want == 'counts' and kind == 'hash' then
		for _, n in ipairs(redis.call('HVALS', KEYS[i])) do
			if not string.match(n, '^%-?%d+$') then delete(KEYS[i]) break end
		end
	elseif want ~= '' and kind ~= 'none' and kind ~= want and not (want == 'counts' and kind == 'hash') then
		delete(KEYS[i])
	end
end
if deleted > 0 then redis.call('INCR', KEYS[#KEYS]) end
return deleted
`)
)

// kindOf says what is under a key, by the part of its name behind that of the fleet. counts are a hash of numbers.
var kindOf = map[string]string{
	"live": "zset", "owners": "hash", "draining": "set", "epoch": "string", "rate": "string", "fail": "string", "cap": "counts",
	"held": "set", "kept_out": "zset", "ticket": "hash", "tickets": "zset", "reply": "hash", "history": "stream", "history_bytes": "string",
	"published": "zset", "left": "zset", "history_since": "string", "history_count": "string", "secret": "string",
}
