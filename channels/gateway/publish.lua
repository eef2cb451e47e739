-- Appends one publication to a channel and tells the nodes that have a subscriber: all or nothing, in one step, so a
-- publisher that dies can't leave a publication stored and untold, and no node sees two publications swapped.
-- KEYS: stream, meta, nodes [, once]
-- ARGV: channel, data, history size, history ttl (s), now (ms), dead before (ms), a fresh epoch, bus prefix
-- Returns {epoch, offset}.
local stream, meta, nodes, once = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, data, ttl = ARGV[1], ARGV[2], tonumber(ARGV[4])

local function tell(epoch, offset, bytes)
  redis.call('ZREMRANGEBYSCORE', nodes, '-inf', '(' .. ARGV[6])
  local frame = epoch .. '\n' .. offset .. '\n' .. channel .. '\n' .. bytes
  for _, node in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
    redis.call('PUBLISH', ARGV[8] .. node, frame)
  end
end

local epoch = redis.call('HGET', meta, 'epoch')
if once then
  local before = redis.call('GET', once)
  if before then
    local old_epoch, old_offset = string.match(before, '^(.*)\n(%d+)$')
    if old_epoch == epoch then
      local entry = redis.call('XRANGE', stream, old_offset .. '-0', old_offset .. '-0')[1]
      if entry then tell(old_epoch, old_offset, entry[2][2]) end
    end
    return {old_epoch, old_offset}
  end
end

if not epoch then
  epoch = ARGV[7]
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', epoch, 'offset', 0)
end
local offset = string.format('%.0f', redis.call('HINCRBY', meta, 'offset', 1))
redis.call('XADD', stream, 'MAXLEN', ARGV[3], offset .. '-0', 'd', data)
redis.call('EXPIRE', stream, ttl)
redis.call('EXPIRE', meta, 2 * ttl)
if once then redis.call('SET', once, epoch .. '\n' .. offset, 'EX', ttl) end
tell(epoch, offset, data)
return {epoch, offset}
