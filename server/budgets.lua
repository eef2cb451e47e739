-- One step of one promotion's budget, atomically. The state machine of a decision (see server/budgets.py):
--
--   (none) --reserve--> held --settle--> settled
--                        \---release, or its time is up---> released
--
-- KEYS[1]  totals, a hash: held_pieces, held_cents, settled_pieces, settled_cents; horizon_ms, the highest expires_ms
--          that was ever forgotten; limit_version, limit_pieces, limit_cents, the newest limit that anyone came with.
-- KEYS[2]  records, a hash: decision -> "<state> <pieces> <cents> <expires_ms>".
-- KEYS[3]  held decisions by expires_ms, a sorted set.
-- KEYS[4]  settled and released decisions by expires_ms, a sorted set.
-- ARGV     step, now_ms, keep_ms, then what the step needs. Time is the caller's: replays and tests bring their own.
-- Returns  {verdict} or {verdict, record}; of tidy {returned, forgotten}.

local totals, records, held, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local step, now_ms, keep_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- How much is tidied in passing, and how much in one call that is about tidying.
local FEW, MANY = 16, 1000

local function add(state, pieces, cents, sign)
  -- "-0" is not an integer to HINCRBY.
  if pieces ~= '0' then redis.call('HINCRBY', totals, state .. '_pieces', sign .. pieces) end
  if cents ~= '0' then redis.call('HINCRBY', totals, state .. '_cents', sign .. cents) end
end

-- From held to settled or released; both are for good.
local function finish(decision, record, state)
  local pieces, cents, expires_ms = string.match(record, '^held (%d+) (%d+) (%d+)$')
  add('held', pieces, cents, '-')
  if state == 'settled' then add('settled', pieces, cents, '') end
  redis.call('HSET', records, decision, state .. string.sub(record, 5))
  redis.call('ZREM', held, decision)
  redis.call('ZADD', done, expires_ms, decision)
end

-- Give back what is past its time, forget what is long past it.
local function tidy(most)
  local late = redis.call('ZRANGE', held, '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, most)
  for _, decision in ipairs(late) do
    finish(decision, redis.call('HGET', records, decision), 'released')
  end
  local old = redis.call('ZRANGE', done, '-inf', now_ms - keep_ms, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
  for i = 1, #old, 2 do
    redis.call('HDEL', records, old[i])
    redis.call('ZREM', done, old[i])
  end
  if #old > 0 then
    local horizon_ms = tonumber(redis.call('HGET', totals, 'horizon_ms') or 0)
    if tonumber(old[#old]) > horizon_ms then redis.call('HSET', totals, 'horizon_ms', old[#old]) end
  end
  return #late, #old / 2
end

if step == 'tidy' then
  return {tidy(MANY)}
end

local decision = ARGV[4]
local record = redis.call('HGET', records, decision)

if step == 'settle' or step == 'release' then
  if not record then return {'unknown'} end
  local state = string.match(record, '^%a+')
  if state ~= 'held' then return {state} end
  local final = step == 'settle' and 'settled' or 'released'
  finish(decision, record, final)
  return {final}
end

if step == 'reserve' then
  local pieces, cents, expires_ms = ARGV[5], ARGV[6], ARGV[7]
  local version, limit = tonumber(ARGV[8]), {pieces = ARGV[9], cents = ARGV[10]}
  local known = redis.call('HMGET', totals, 'limit_version', 'limit_pieces', 'limit_cents')
  if known[1] and version < tonumber(known[1]) then
    -- A worker that has not heard of the newest limit yet is held to it all the same.
    limit.pieces, limit.cents = known[2], known[3]
  elseif known[1] ~= ARGV[8] or known[2] ~= limit.pieces or known[3] ~= limit.cents then
    -- Not otherwise: asking an exhausted budget must not write.
    redis.call('HSET', totals, 'limit_version', ARGV[8], 'limit_pieces', limit.pieces, 'limit_cents', limit.cents)
  end

  local terms = pieces .. ' ' .. cents .. ' ' .. expires_ms
  if record then
    local state, before = string.match(record, '^(%a+) (.+)$')
    if before ~= terms then return {'conflict', before} end
    return {state == 'released' and 'released' or 'already'}
  end

  -- Whoever was forgotten expired at the horizon or before: whatever the clocks say, nobody gets a second grant.
  local horizon_ms = tonumber(redis.call('HGET', totals, 'horizon_ms') or 0)
  if tonumber(expires_ms) <= math.max(now_ms, horizon_ms) then return {'too_late'} end

  local function room(unit, amount)
    if limit[unit] == '' then return true end
    local used = redis.call('HMGET', totals, 'held_' .. unit, 'settled_' .. unit)
    return tonumber(used[1] or 0) + tonumber(used[2] or 0) + tonumber(amount) <= tonumber(limit[unit])
  end
  local function fits() return room('pieces', pieces) and room('cents', cents) end

  tidy(fits() and FEW or MANY)
  if not fits() then return {'exhausted'} end
  add('held', pieces, cents, '')
  redis.call('HSET', records, decision, 'held ' .. terms)
  redis.call('ZADD', held, expires_ms, decision)
  return {'granted'}
end

return redis.error_reply('unknown step')
