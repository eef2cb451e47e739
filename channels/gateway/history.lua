-- What a channel keeps: after (or, newest first, before) a position, or from either end.
-- KEYS: stream, meta, gone
-- ARGV: a fresh epoch, history ttl (s), limit (-1 for all), 1 for newest first, 1 if there is a position, its epoch, its
--       offset
-- Returns {epoch, top offset, 1 if what lies next to the position is all there, {offset, data, key, note, offset ...}}.
local stream, meta, gone = unpack(KEYS)
local epoch, top = unpack(redis.call('HMGET', meta, 'epoch', 'offset'))
if not epoch then
  epoch, top = begin_epoch(stream, meta, gone, ARGV[1])
  redis.call('EXPIRE', meta, 2 * tonumber(ARGV[2]))
end
local limit, reverse, last, offset = tonumber(ARGV[3]), ARGV[4] == '1', tonumber(top), tonumber(ARGV[7])
local entries = {}
if ARGV[5] == '1' then
  if ARGV[6] ~= epoch or offset > last then return {epoch, top, 0, {}} end
  if reverse then
    if offset > 0 then entries = redis.call('XREVRANGE', stream, '(' .. ARGV[7] .. '-0', '-') end
  else
    entries = after(stream, gone, offset, last)
    if not entries then return {epoch, top, 0, {}} end
  end
elseif limit ~= 0 then
  entries = reverse and redis.call('XREVRANGE', stream, '+', '-') or redis.call('XRANGE', stream, '-', '+')
end
if limit >= 0 then
  for i = #entries, limit + 1, -1 do entries[i] = nil end
end
return {epoch, top, 1, flat(entries)}
