-- One step through one stream of the event log, looking for customers' records (field `k`).
-- KEYS: the stream. ARGV: where to start and to end (as XRANGE takes them), how many records to look at, 1 to remove
-- the records found, and the customers, each with the time in ms after which a record is none of this.
-- Returns where to go on ('' at the end), then the customers found.
local until_ms = {}
for i = 5, #ARGV, 2 do until_ms[ARGV[i]] = tonumber(ARGV[i + 1]) end
local found = {}
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local remove = {}
for _, entry in ipairs(entries) do
  local fields = entry[2]
  local written_ms = tonumber(string.match(entry[1], '^%d+'))
  for i = 1, #fields, 2 do
    if fields[i] == 'k' and written_ms <= (until_ms[fields[i + 1]] or -1) then
      found[fields[i + 1]] = true
      remove[#remove + 1] = entry[1]
    end
  end
end
if ARGV[4] == '1' and #remove > 0 then redis.call('XDEL', KEYS[1], unpack(remove)) end
local answer = {#entries < tonumber(ARGV[3]) and '' or '(' .. entries[#entries][1]}
for customer in pairs(found) do answer[#answer + 1] = customer end
return answer
