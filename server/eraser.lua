-- One step through one stream of the event log, looking for customers' records (field `k`).
-- KEYS: the stream. ARGV: where to start and to end (as XRANGE takes them), how many records to look at, 1 to remove
-- the records found, and the customers.
-- Returns where to go on ('' at the end), then the customers found.
local customers = {}
for i = 5, #ARGV do customers[ARGV[i]] = false end
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local remove = {}
for _, entry in ipairs(entries) do
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'k' and customers[fields[i + 1]] ~= nil then
      customers[fields[i + 1]] = true
      remove[#remove + 1] = entry[1]
    end
  end
end
if ARGV[4] == '1' and #remove > 0 then redis.call('XDEL', KEYS[1], unpack(remove)) end
local answer = {#entries < tonumber(ARGV[3]) and '' or '(' .. entries[#entries][1]}
for customer, found in pairs(customers) do
  if found then answer[#answer + 1] = customer end
end
return answer
