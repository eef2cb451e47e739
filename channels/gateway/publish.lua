-- Appends one publication to a channel and tells the nodes that have a subscriber: all or nothing, in one step, so a
-- publisher that dies can't leave a publication stored and untold, and no node sees two publications swapped.
-- KEYS: stream, meta, gone, nodes [, once, recalled (there is a withdrawal of it that must not be undone)]
-- ARGV: channel, data, key ('' for none), history size, history ttl (s), dead before (ms), a fresh epoch, bus prefix,
--       1 to publish only if a node has a subscriber, a note for the nodes ('' for none)
-- Returns {epoch, offset}; nil if nobody would have heard it; {} if it was recalled.
local stream, meta, gone, nodes, once, recalled = unpack(KEYS)
local channel, data, key, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])

local before = once and redis.call('GET', once)
if before then
  if redis.call('EXISTS', recalled) == 1 then return {} end
  local epoch, offset = string.match(before, '^(.*)\n(%d+)$')
  if epoch == redis.call('HGET', meta, 'epoch') then
    local entry = redis.call('XRANGE', stream, offset .. '-0', offset .. '-0')[1]
    if entry then
      tell(nodes, ARGV[6], ARGV[8], frame(epoch, offset, channel, entry[2][2], entry[2][4], entry[2][6]))
    end
  end
  return {epoch, offset}
end

if ARGV[9] == '1' and redis.call('ZCOUNT', nodes, ARGV[6], '+inf') == 0 then return false end

local note = ARGV[10] ~= '' and ARGV[10] or nil
local epoch, offset = append(stream, meta, gone, data, key, ARGV[4], ttl, ARGV[7], note)
if once then redis.call('SET', once, epoch .. '\n' .. offset, 'EX', ttl) end
tell(nodes, ARGV[6], ARGV[8], frame(epoch, offset, channel, data, key, note))
return {epoch, offset}
