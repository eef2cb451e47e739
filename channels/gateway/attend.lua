-- A node says that it has a subscriber to a channel, and learns where the channel stands.
-- KEYS: stream, meta, nodes
-- ARGV: node, now (ms), dead before (ms), a fresh epoch, history ttl (s), nodes ttl (s), the epoch and offset the node
--       has delivered up to ('' and 0 if none)
-- Returns {epoch, top offset}.
local stream, meta, nodes = KEYS[1], KEYS[2], KEYS[3]
local epoch, top = unpack(redis.call('HMGET', meta, 'epoch', 'offset'))
-- A top below what was already delivered means that the store lost acknowledged writes: the offsets after it will be
-- used a second time, so positions taken before the loss must not be trusted.
if not epoch or (epoch == ARGV[7] and tonumber(top) < tonumber(ARGV[8])) then
  epoch, top = ARGV[4], '0'
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', epoch, 'offset', top)
end
redis.call('EXPIRE', meta, 2 * tonumber(ARGV[5]))
redis.call('ZADD', nodes, ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', nodes, '-inf', '(' .. ARGV[3])
redis.call('EXPIRE', nodes, ARGV[6])
return {epoch, top}
