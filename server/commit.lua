-- One engine batch of one partition, all or nothing.
-- KEYS: epoch, offsets, outbox, timers, dead letters; then the keys to set; then the keys to delete;
--       then, for each decision, its own key and the customer's list of decisions.
-- ARGV: expected epoch, number of keys to set, number to delete, their values, a MessagePack map of the
--       rest, and the original bytes of each dead letter (which Lua's MessagePack could not carry).
-- Refuses with FENCED when another worker has taken the partition over since.
local epoch = redis.call('GET', KEYS[1]) or '0'
if epoch ~= ARGV[1] then
  return redis.error_reply('FENCED epoch is ' .. epoch .. ', not ' .. ARGV[1])
end
local sets, deletes = tonumber(ARGV[2]), tonumber(ARGV[3])
local rest = cmsgpack.unpack(ARGV[4 + sets])

-- Deletions first: someone erased may have come back within the same batch.
for i = 1, deletes do
  redis.call('DEL', KEYS[5 + sets + i])
end

-- Lua can pass a few thousand arguments to one call.
local CHUNK = 2000
for first = 1, sets, CHUNK do
  local pairs_ = {}
  for i = first, math.min(first + CHUNK - 1, sets) do
    pairs_[#pairs_ + 1] = KEYS[5 + i]
    pairs_[#pairs_ + 1] = ARGV[3 + i]
  end
  redis.call('MSET', unpack(pairs_))
end
for topic, position in pairs(rest.offsets) do
  redis.call('HSET', KEYS[2], topic, position)
end
for _, entry in ipairs(rest.outbox) do
  redis.call('XADD', KEYS[3], '*', 'e', entry)
end
for member, due in pairs(rest.timers) do
  if due == 0 then
    redis.call('ZREM', KEYS[4], member)
  else
    redis.call('ZADD', KEYS[4], due, member)
  end
end
for i, letter in ipairs(rest.dead_letters) do
  redis.call('XADD', KEYS[5], '*', 'reason', letter[1], 'detail', letter[2], 'topic', letter[3], 'position', letter[4],
    'key', letter[5], 'value', ARGV[4 + sets + i])
end
local next_key = 5 + sets + deletes
for _, decision in ipairs(rest.decisions) do
  redis.call('SET', KEYS[next_key + 1], decision[2], 'EX', rest.decision_ttl)
  redis.call('LPUSH', KEYS[next_key + 2], decision[1])
  redis.call('LTRIM', KEYS[next_key + 2], 0, rest.kept_decisions - 1)
  redis.call('EXPIRE', KEYS[next_key + 2], rest.decision_ttl)
  next_key = next_key + 2
end
return #rest.outbox
