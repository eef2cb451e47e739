-- A node says that it has a subscriber to a channel, and who; it learns where the channel stands, and what followed a
-- position. In one step: whatever is published after what it reads finds it among the channel's nodes.
-- KEYS: stream, meta, gone, nodes, presence
-- ARGV: node, now (ms), dead before (ms), a fresh epoch, history ttl (s), nodes ttl (s), the epoch and offset the node
--       has delivered up to ('' and 0 if none), the reader's epoch ('' for a new reader) and offset, then client and
--       user of each subscriber to be seen
-- Returns {epoch, top offset, 1 if recovered, {offset, data, key, note, offset ...}}.
local stream, meta, gone, nodes, presence = unpack(KEYS)
local epoch, top = unpack(redis.call('HMGET', meta, 'epoch', 'offset'))
-- A top below what was already delivered means that the store lost acknowledged writes: the offsets after it will be
-- used a second time, so positions taken before the loss must not be trusted.
if not epoch or (epoch == ARGV[7] and tonumber(top) < tonumber(ARGV[8])) then
  epoch, top = begin_epoch(stream, meta, gone, ARGV[4])
end
redis.call('EXPIRE', meta, 2 * tonumber(ARGV[5]))
redis.call('ZADD', nodes, ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', nodes, '-inf', '(' .. ARGV[3])
redis.call('EXPIRE', nodes, ARGV[6])
for i = 11, #ARGV, 2 do redis.call('HSET', presence, ARGV[i], ARGV[2] .. '\n' .. ARGV[i + 1]) end
if #ARGV > 10 then redis.call('EXPIRE', presence, ARGV[6]) end

if ARGV[9] ~= epoch then return {epoch, top, 0, {}} end
local entries = after(stream, gone, tonumber(ARGV[10]), tonumber(top))
if not entries then return {epoch, top, 0, {}} end
return {epoch, top, 1, flat(entries)}
