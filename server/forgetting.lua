-- Writes a stream anew, so that nothing is left of what is gone from it: the bytes of an entry that was deleted or
-- trimmed stay in its block, and in dumps and files made of it, until the whole block goes.
-- KEYS: the stream, and a scratch key in its slot.
-- ARGV: a time in ms, and the ids of the entries (dead letters) that lose their `value` at that time.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local info, last = redis.call('XINFO', 'STREAM', KEYS[1]), nil
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
end
local cut = {}
for i = 2, #ARGV do cut[ARGV[i]] = true end

local function without_value(fields)
  local kept, internal = {}, false
  for i = 1, #fields, 2 do
    if fields[i] == 'reason' then internal = fields[i + 1] == 'internal_error' end
  end
  for i = 1, #fields, 2 do
    local value = fields[i + 1]
    if fields[i] == 'value' then value = '' end
    -- What an exception says may quote the event; its type doesn't.
    if fields[i] == 'detail' and internal then value = string.match(value, '^[%w_.]*') end
    kept[#kept + 1] = fields[i]
    kept[#kept + 1] = value
  end
  kept[#kept + 1] = 'cut_ms'
  kept[#kept + 1] = ARGV[1]
  return kept
end

redis.call('DEL', KEYS[2])
local start, rows = '-', nil
repeat
  rows = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 100)
  for _, row in ipairs(rows) do
    local fields = row[2]
    if cut[row[1]] then fields = without_value(fields) end
    redis.call('XADD', KEYS[2], row[1], unpack(fields))
    start = '(' .. row[1]
  end
until #rows < 100
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('XSETID', KEYS[1], last)
return #ARGV - 1
