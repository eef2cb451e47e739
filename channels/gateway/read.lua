-- What a channel published after a position, or the news that it can't be told any more.
-- KEYS: stream, meta
-- ARGV: the reader's epoch ('' for a new reader), its offset, a fresh epoch, history ttl (s)
-- Returns {epoch, top offset, 1 if recovered, entries}.
local stream, meta = KEYS[1], KEYS[2]
local epoch, top = unpack(redis.call('HMGET', meta, 'epoch', 'offset'))
if not epoch then
  epoch, top = ARGV[3], '0'
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', epoch, 'offset', top)
  redis.call('EXPIRE', meta, 2 * tonumber(ARGV[4]))
end
local offset, last = tonumber(ARGV[2]), tonumber(top)
if ARGV[1] ~= epoch or offset > last then return {epoch, top, 0, {}} end
if offset == last then return {epoch, top, 1, {}} end

local first = string.format('%.0f-0', offset + 1)
local entries = redis.call('XRANGE', stream, first, '+')
if #entries ~= last - offset or entries[1][1] ~= first then return {epoch, top, 0, {}} end
local publications = {}
for i, entry in ipairs(entries) do publications[i] = entry[2][2] end
return {epoch, top, 1, publications}
