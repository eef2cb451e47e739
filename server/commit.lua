-- One engine batch of one partition, all or nothing.
-- KEYS: epoch, offsets, outbox, timers, dead letters, opt-outs, erasures; then the keys to set.
-- ARGV: the epoch and the number of keys to set, their values, a MessagePack map of the rest, and the original bytes of
--       each dead letter (which Lua's MessagePack could not carry). Keys of decisions, presences, erased customers and
--       footfall are made here, from prefixes in the map, or named in it; they are all in the partition's slot.
-- Refuses with FENCED when another worker has taken the partition over since, or when the stored offsets aren't those
-- that this worker last read or wrote: then the store has lost writes, and the log must replay them. Refuses with
-- DEAD_LETTERS_FULL rather than throw one away.
local epoch = redis.call('GET', KEYS[1]) or '0'
if epoch ~= ARGV[1] then
  return redis.error_reply('FENCED epoch is ' .. epoch .. ', not ' .. ARGV[1])
end
local sets = tonumber(ARGV[2])
local rest = cmsgpack.unpack(ARGV[3 + sets])
local stored = redis.call('HGETALL', KEYS[2])
local known = 0
for _ in pairs(rest.expected) do known = known + 1 end
if #stored ~= 2 * known then
  return redis.error_reply('FENCED other topics have offsets')
end
for i = 1, #stored, 2 do
  if rest.expected[stored[i]] ~= stored[i + 1] then
    return redis.error_reply('FENCED the offset of ' .. stored[i] .. ' is ' .. stored[i + 1])
  end
end

if #rest.dead_letters > 0
    and redis.call('XLEN', KEYS[5]) + #rest.dead_letters > rest.max_dead_letters then
  return redis.error_reply('DEAD_LETTERS_FULL')
end

-- Deletions first: someone erased may have come back within the same batch.
for customer, arrived_ms in pairs(rest.erased) do
  local list = rest.decisions_prefix .. customer
  for _, decision in ipairs(redis.call('LRANGE', list, 0, -1)) do
    redis.call('DEL', rest.decision_prefix .. decision)
  end
  redis.call('DEL', list, rest.customer_prefix .. customer, rest.presence_prefix .. customer)
  redis.call('HDEL', KEYS[6], customer)
  redis.call('HDEL', rest.pickups_key, customer)
  redis.call('HSET', KEYS[7], customer, string.format('%.0f', arrived_ms))
end

-- Lua can pass a few thousand arguments to one call.
local CHUNK = 2000
for first = 1, sets, CHUNK do
  local pairs_ = {}
  for i = first, math.min(first + CHUNK - 1, sets) do
    pairs_[#pairs_ + 1] = KEYS[7 + i]
    pairs_[#pairs_ + 1] = ARGV[2 + i]
  end
  redis.call('MSET', unpack(pairs_))
end
local hot = rest.hot
for i = 1, #hot, 2 do
  hot[i] = rest.presence_prefix .. hot[i]
end
for first = 1, #hot, 2 * CHUNK do
  redis.call('MSET', unpack(hot, first, math.min(first + 2 * CHUNK - 1, #hot)))
end
for topic, position in pairs(rest.offsets) do
  redis.call('HSET', KEYS[2], topic, position)
end
for _, entry in ipairs(rest.outbox) do
  redis.call('XADD', KEYS[3], '*', 'e', entry[1], 't', entry[2])
end
for member, due in pairs(rest.timers) do
  if due == 0 then
    redis.call('ZREM', KEYS[4], member)
  else
    redis.call('ZADD', KEYS[4], due, member)
  end
end
for fence, people in pairs(rest.footfall) do
  if redis.call('HINCRBY', rest.footfall_key, fence, people) == 0 then
    redis.call('HDEL', rest.footfall_key, fence)
  end
end
-- Each with when it may be forgotten, in seconds: 0 is never; -1: as it was, and one that is forgotten stays so.
for name, counter in pairs(rest.counters) do
  if counter[1] >= 0 or redis.call('EXISTS', name) == 1 then
    for field, amount in pairs(counter[2]) do
      -- One that is back at zero is as one that never was: so it doesn't show how the log was cut.
      if amount ~= 0 and redis.call('HINCRBY', name, field, amount) == 0 then redis.call('HDEL', name, field) end
    end
    if counter[1] > 0 then redis.call('EXPIREAT', name, counter[1]) end
  end
end
for customer, stores in pairs(rest.pickups) do
  if stores == '' then
    redis.call('HDEL', rest.pickups_key, customer)
  else
    redis.call('HSET', rest.pickups_key, customer, stores)
  end
end
for i, letter in ipairs(rest.dead_letters) do
  redis.call('XADD', KEYS[5], '*', 'reason', letter[1], 'detail', letter[2], 'topic', letter[3], 'position', letter[4],
    'key', letter[5], 'arrived_ms', string.format('%.0f', letter[6]), 'value', ARGV[3 + sets + i])
end
for _, decision in ipairs(rest.decisions) do
  local list = rest.decisions_prefix .. decision[2]
  redis.call('SET', rest.decision_prefix .. decision[1], decision[3], 'EX', rest.decision_ttl)
  redis.call('LPUSH', list, decision[1])
  for _, dropped in ipairs(redis.call('LRANGE', list, rest.kept_decisions, -1)) do
    redis.call('DEL', rest.decision_prefix .. dropped)
  end
  redis.call('LTRIM', list, 0, rest.kept_decisions - 1)
  redis.call('EXPIRE', list, rest.decision_ttl)
end
return #rest.outbox
